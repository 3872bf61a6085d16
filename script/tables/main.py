"""Tables 1 to 4 of SD4Match's paper."""

from __future__ import annotations

from collections.abc import Iterable

from script.tables.rows import Rows, Table, World, list_rows

TESTED = {"pfpascal": "PF-Pascal", "pfwillow": "PF-Willow", "spair": "SPair-71k"}
ALPHAS = {"pfpascal": (0.05, 0.1, 0.15), "pfwillow": (0.05, 0.1, 0.15), "spair": (0.05, 0.1)}
CPM = "Pair-DINO-Feat-G25-C50"


def list_tables(world: World) -> tuple[Table, ...]:
    return (
        Table(
            "table1",
            "Table 1: main comparison",
            {
                "DINOv1": list_rows("dinov1", "dinov1", TESTED),
                "DINOv2": list_rows("dinov2", "dinov2", TESTED),
                "DIFT, text prompt": untuned("text", data=TESTED),
                "DIFT, empty prompt": untuned("empty", data=TESTED),
                "SD+DINO": list_rows("sd_dino", "sd_dino", TESTED),
                "CleanDIFT": list_rows("cleandift", "cleandift", TESTED, "TEST.ENSEMBLE", "1"),
                "SD4Match-Single": learned("single", "pfpascal", ("pfpascal", "pfwillow")) | learned("single"),
                "SD4Match-Class": learned("class"),
                "SD4Match-CPM": learned("cpm", "pfpascal", ("pfpascal", "pfwillow")) | learned("cpm"),
            },
            ALPHAS,
            "Learned prompts are trained on PF-Pascal for PF-Pascal and PF-Willow, and on SPair-71k for SPair-71k.",
        ),
        Table(
            "table2",
            "Table 2: SPair-71k by category, PCK@0.1",
            {"DIFT, text prompt": untuned("text")}
            | {f"SD4Match-{name}": learned(name.lower()) for name in ("Single", "Class", "CPM")},
            {"spair": (0.1,)},
            by_category=True,
        ),
        Table(
            "table3",
            "Table 3: generalisation",
            {
                f"SD4Match-{name}, trained on {TESTED[train_on]}": learned(name.lower(), train_on, TESTED)
                for train_on in ("pfpascal", "spair")
                for name in ("Single", "CPM")
            },
            ALPHAS,
        ),
        Table(
            "table4",
            "Table 4: ablation of the conditional prompting module",
            {
                "Pair + Feat (default)": cpm(CPM),
                "Pair + Head": cpm("Pair-DINO-Head-G25-C50"),
                "Img + Feat": cpm("Img-DINO-Feat-G25-C50"),
                "Img + Head": cpm("Img-DINO-Head-G25-C50"),
                "no global prompt": cpm("Pair-DINO-Feat-G0-C50"),
                "no layer across patches": cpm(f"{CPM}-noN"),
            },
            {"spair": ALPHAS["pfpascal"]},
        ),
    )


def untuned(prompt: str, *opts: str, key: str = "", data: Iterable[str] = ("spair",)) -> Rows:
    """The rows of a prompt in words; key: if its settings are not the usual ones."""
    return list_rows(key or prompt, "base", data, "PROMPT.TYPE", prompt, *opts)


def learned(method: str, train_on: str = "spair", data: Iterable[str] = ("spair",)) -> Rows:
    """The rows of a learned prompt; `method` is single, class or cpm."""
    return list_rows(f"{method}-{train_on}", f"sd4match_{method}", data, train_on=train_on)


def variant(method: str, name: str, *opts: str, named: bool = True) -> Rows:
    """A prompt that is learned with other settings on SPair; named: whether the prompt's own name tells them."""
    more = {"train_on": "spair", "opts": opts, "folder": "" if named else name}
    return list_rows(f"{method}-{name}", f"sd4match_{method}", ("spair",), **more)


def cpm(name: str) -> Rows:
    """A CPM variant trained and tested on SPair; the default is the row of the other tables."""
    return learned("cpm") if name == CPM else variant("cpm", name, "PROMPT.CPM", name)
