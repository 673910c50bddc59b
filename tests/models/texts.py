"""Text to score: docstrings of the standard library, and samples of many scripts."""

import ast
import random
import sysconfig
from functools import cache
from pathlib import Path

MULTILINGUAL = [
    *("Der schnelle braune Fuchs springt über den faulen Hund.", "Größe, Maß und Übermut"),
    *(
        "敏捷的棕色狐狸跳过了懒狗。中文没有空格",
        "すばやい茶色の狐がのろまな犬を飛び越える。",
        "빠른 갈색 여우가 게으른 개를 뛰어넘는다.",
    ),
    *("الثعلب البني السريع يقفز فوق الكلب الكسول.", "שועל חום מהיר קופץ מעל כלב עצלן", "‮right to left‬"),
    *(
        "Быстрая коричневая лиса",
        "Ο γρήγορος καφές αλεπού",
        "तेज़ भूरी लोमड़ी आलसी कुत्ते पर कूदती है",
        "สุนัขจิ้งจอกสีน้ำตาล",
    ),
    *(
        "🙂🙃👩‍👩‍👧‍👦🇩🇪 emoji",
        "e\u0301 combining \u0301\u0302",
        "ﬁ ligature ½ ²",
        "\u00a0nbsp\u2003em\u3000wide",
    ),
    *(
        "tabs\tand\nnew\r\nlines\n\n\n",
        "   ",
        "",
        "a",
        "...!!!???",
        "don't can't I'll",
        "x" * 300,
        "[SEP] [CLS] </s> <s>",
    ),
    *(
        "NUL\x00inside",
        "\ufeffbom",
        "CamelCase snake_case kebab-case",
        "3,520,031 891.82 1e-5",
        "#hash @at $5",
    ),
]


@cache
def docstrings() -> list[tuple[str, str]]:
    """(summary line, body) of functions and classes in the standard library, in a fixed order."""
    found: dict[str, str] = {}
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                continue
            summary, _, body = (ast.get_docstring(node) or "").partition("\n\n")
            if 20 < len(summary) < 200 and len(body) > 40:
                found.setdefault(" ".join(summary.split()), body)
    return sorted(found.items())


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Queries with documents of very different lengths, from a word to several thousand characters."""
    rng = random.Random(seed)
    texts = docstrings()
    result = []
    for _ in range(count):
        query = rng.choice(texts)[0]
        body = rng.choice(texts)[1]
        if rng.random() < 0.15:
            body = " ".join(rng.choice(texts)[1] for _ in range(4))
        elif rng.random() < 0.3:
            body = body[: rng.randrange(60)]
        result.append((query, body))
    return result
