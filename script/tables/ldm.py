"""Tables of LDM_correspondences: Table 1 of its paper, and what each part of it does on validation pairs."""

from __future__ import annotations

from config import load_config
from script.tables.rows import Row, Rows, Table, World

JUDGED = {"cub": "bbox_width", "pfwillow": "padded_kps", "spair": "src_bbox"}  # its authors' DATASET.THRESHOLD
REPORTED = {
    "CHM, strongly supervised": "chm",
    "VAT, strongly supervised": "vat",
    "CATs++, strongly supervised": "cats_pp",
    "PMD, weakly supervised": "pmd",
    "PSCNet-SE, weakly supervised": "pscnet",
    "VGG+MLS": "vgg_mls",
    "DINO+MLS": "dino_mls",
    "DINO+NN": "dino_nn",
    "ASIC": "asic",
}
FEW = ("TEST.SPLIT", "val", "DATASET.PAIRS", "10")  # of each category
METHOD = "ldm_correspondence"


def list_ldm_tables(world: World) -> tuple[Table, ...]:
    """Both tables."""
    paper = {label: {data: Row(f"{name}/{data}", "", data) for data in JUDGED} for label, name in REPORTED.items()}
    few = () if world.comparable else FEW[2:]  # minutes
    ours = {
        data: Row(f"ldm/{data}", METHOD, data, test_opts=("DATASET.THRESHOLD", rule, *few))
        for data, rule in JUDGED.items()
    }
    usual = {data: Row(f"ldm-usual/{data}", METHOD, data, test_opts=few, folder="ldm-usual") for data in JUDGED}
    return (
        Table(
            "table_ldm",
            "LDM_correspondences: main comparison",
            {**paper, "LDM_correspondences": ours, "LDM_correspondences, usual thresholds": usual},
            dict.fromkeys(JUDGED, (0.05, 0.1)),
            "Its authors judge SPair-71k by the source's box, PF-Willow by the greatest coordinate, three classes of "
            "CUB by the width's scale; the last line by the target's box or points (--localiser centre).",
            paper="ldm",
        ),
        Table(
            "ldm",
            "LDM_correspondences: what its parts do, validation pairs",
            _list_parts(world),
            {"spair": (0.05, 0.1)},
            f"{' '.join(FEW)}; --localiser nn for all.",
        ),
    )


def _list_parts(world: World) -> dict[str, Rows]:
    section = load_config(world.config_file(Row("", METHOD, "spair"))).LDM
    layers = section.READ_LAYERS or section.LAYERS
    variants = {
        "1 round": ("ROUNDS", "1"),
        "a third of the steps": ("STEPS", str(section.STEPS // 3)),
        "read on the corner crops alone": ("CROPS", "4"),
        "no softmax over the pixels": ("PIXEL_SOFTMAX", "False"),
        "normal noise": ("NOISE", "normal"),
        **{f"read on {layer} alone": ("READ_LAYERS", f"['{layer}']") for layer in layers if len(layers) > 1},
    }
    compared = {
        "the same place": ("same_place", ("METHOD.NAME", "same_place")),
        "attention of the category's word": ("word_attention", ("METHOD.NAME", "word_attention")),
    }
    lines = {label: _row(name, METHOD, *opts) for label, (name, opts) in compared.items()}
    lines["DIFT, text prompt"] = _row("dift", "dift", "EVAL.LOCALISERS", "['nn']", "EVAL.PICTURE_LOCALISER", "nn")
    lines["LDM_correspondences"] = _row("ldm", METHOD)
    for label, (key, value) in variants.items():
        lines[label] = _row(f"ldm-{label.replace(' ', '_')}", METHOD, f"LDM.{key}", value)
    return lines


def _row(name: str, config: str, *opts: str) -> Rows:
    return {"spair": Row(f"{name}-val/spair", config, "spair", test_opts=(*FEW, *opts), folder=f"{name}-val")}
