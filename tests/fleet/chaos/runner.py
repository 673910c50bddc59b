"""One scenario, from a healthy fleet to a healthy fleet, and what its callers saw."""

from dataclasses import dataclass

from tests.fleet.chaos.fleet import ChaosFleet
from tests.fleet.chaos.load import Tally
from tests.fleet.chaos.scenarios import Effort, Scenario
from tests.fleet.chaos.workload import make_questions

__all__ = ["MIN_CALLS_PER_S", "Outcome", "run_scenario"]

MIN_CALLS_PER_S = 50.0
QUESTIONS = 200
CALM_CALLS = 60
"""Before and after the blow, so that the fleet is seen to have been well, and to be well again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scenario did to its callers."""

    scenario: Scenario
    layer: str
    tally: Tally
    broken_attempts: int | None
    """Attempts that failed below the client's retries, by Nginx's log; only layer 7 sees calls."""
    trouble: str = ""
    """What the fleet failed to do, if anything."""

    @property
    def kept_the_promise(self) -> bool:
        """Every call answered, rightly and in time, under the load that was promised."""
        tally = self.tally
        return not (self.trouble or tally.failed or tally.wrong or tally.late) and (
            tally.calls_per_s >= MIN_CALLS_PER_S
        )

    def describe(self) -> str:
        """One line for messages of failed tests."""
        tally = self.tally
        return (
            f"{self.layer} {self.scenario.name}: {tally.requests} calls, {tally.failed} failed, "
            f"{tally.wrong} wrong, {tally.late} late, {tally.calls_per_s:.0f} a second; "
            f"{self.trouble} {tally.describe_errors()}"
        )


def run_scenario(scenario: Scenario, fleet: ChaosFleet, effort: Effort) -> Outcome:
    """Break the fleet as the scenario says, under load; the fleet is healthy again on return."""
    fleet.forget_the_past()
    log_before = len(fleet.nginx.calls())
    trouble = ""
    with fleet.load(make_questions(QUESTIONS), scenario.load) as load:
        load.wait_for_calls(CALM_CALLS)
        try:
            scenario.strike(fleet, load, effort)
            load.wait_for_calls(CALM_CALLS)
        except AssertionError as error:
            trouble = str(error)
    broken = None
    if fleet.layer == "l7":
        broken = sum(entry["grpc_status"] != "0" for entry in fleet.nginx.calls()[log_before:])
    return Outcome(scenario, fleet.layer, load.tally, broken, trouble)
