"""The health gate's policy."""

from hypothesis import given
from hypothesis import strategies as st

from server.healthgate.rotation import Answer, Rotation, RotationPolicy


def rotation_of(*names: str) -> Rotation:
    rotation = Rotation()
    rotation.set_servers(names)
    for name in names:
        rotation.observe(name, Answer.SERVING, 0.0)
    return rotation


def members_in(rotation: Rotation) -> set[str]:
    return {address for address, reason in rotation.members().items() if not reason}


def test_not_serving_leaves_at_once_and_serving_returns_at_once() -> None:
    """A server is taken at its word."""
    rotation = rotation_of("a", "b")
    rotation.observe("a", Answer.NOT_SERVING, 1.0)
    assert members_in(rotation) == {"b"}
    rotation.observe("a", Answer.SERVING, 1.5)
    assert members_in(rotation) == {"a", "b"}


def test_one_silence_is_forgiven() -> None:
    """The second in a row is not."""
    rotation = rotation_of("a", "b")
    rotation.observe("a", Answer.SILENCE, 1.0)
    rotation.observe("a", Answer.SERVING, 2.0)
    rotation.observe("a", Answer.SILENCE, 3.0)
    assert members_in(rotation) == {"a", "b"}
    rotation.observe("a", Answer.SILENCE, 4.0)
    assert members_in(rotation) == {"b"}


def test_when_all_look_dead_all_are_in() -> None:
    """Failing open loses nothing that was not lost."""
    rotation = rotation_of("a", "b")
    for name in ("a", "b"):
        rotation.observe(name, Answer.NOT_SERVING, 1.0)
    assert members_in(rotation) == {"a", "b"}
    assert rotation.fails_open
    rotation.observe("a", Answer.SERVING, 2.0)
    assert members_in(rotation) == {"a"}
    assert not rotation.fails_open


def test_damping_never_takes_out_more_than_half() -> None:
    """Servers that flap and serve stand in while fewer than half of all are in."""
    rotation = rotation_of("a", "b", "c", "d")
    for _ in range(3):
        for name in "ab":
            rotation.observe(name, Answer.NOT_SERVING, 1.0)
            rotation.observe(name, Answer.SERVING, 1.5)
    assert members_in(rotation) == {"c", "d"}
    rotation.observe("c", Answer.NOT_SERVING, 2.0)
    assert members_in(rotation) == {"a", "b", "d"}
    rotation.observe("a", Answer.NOT_SERVING, 2.0)
    assert members_in(rotation) == {"b", "d"}
    rotation.observe("c", Answer.SERVING, 2.5)
    assert members_in(rotation) == {"c", "d"}


def test_flapping_is_damped_and_forgiven() -> None:
    """The third exit in a minute holds the server out, longer each time; a quiet minute clears it."""
    rotation = rotation_of("a", "b")
    now_s, holds = 0.0, []
    for _ in range(5):
        rotation.observe("a", Answer.NOT_SERVING, now_s)
        left_s = now_s
        while "a" not in members_in(rotation):
            now_s += 0.5
            rotation.observe("a", Answer.SERVING, now_s)
        holds.append(now_s - left_s)
    assert holds == [0.5, 0.5, 2.0, 4.0, 8.0]
    now_s += 61
    rotation.observe("a", Answer.NOT_SERVING, now_s)
    rotation.observe("a", Answer.SERVING, now_s + 0.5)
    assert "a" in members_in(rotation)


def test_a_new_server_comes_in_when_it_serves() -> None:
    """Scaling out never sends calls to a server that is still loading."""
    rotation = rotation_of("a")
    rotation.set_servers(["a", "new"])
    assert members_in(rotation) == {"a"}
    rotation.observe("new", Answer.SERVING, 1.0)
    assert members_in(rotation) == {"a", "new"}
    rotation.set_servers(["new"])
    rotation.observe("a", Answer.SERVING, 2.0)
    assert set(rotation.members()) == {"new"}


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(Answer), st.floats(0, 30)), min_size=1, max_size=200
    )
)
def test_there_is_always_a_member_and_always_a_way_back(steps: list[tuple[str, Answer, float]]) -> None:
    """Whatever happens, the upstream is never empty, and SERVING for a minute brings everyone in."""
    rotation, now_s = rotation_of("a", "b", "c"), 0.0
    for name, answer, passed_s in steps:
        now_s += passed_s
        rotation.observe(name, answer, now_s)
        assert members_in(rotation)
    now_s += RotationPolicy().max_hold_s
    for name in "abc":
        rotation.observe(name, Answer.SERVING, now_s)
    assert members_in(rotation) == {"a", "b", "c"}
