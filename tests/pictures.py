"""Small pictures with captions for tests."""

import io
import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw

from tests.pipelines import save_pipeline

COLOURS = {"red": (220, 40, 30), "green": (40, 170, 60), "blue": (40, 70, 210)}
SHAPES = ("circle", "square")


def picture(colour: str, shape: str, seed: int, side: int = 20) -> bytes:
    """Return a PNG of one shape on white, its place and size drawn from the seed."""
    generator = np.random.default_rng([seed, len(colour), len(shape)])
    size = int(generator.integers(side // 3, side // 2))
    left, top = (int(v) for v in generator.integers(1, side - size - 1, size=2))
    image = Image.new("RGB", (side + 4, side), "white")
    draw = ImageDraw.Draw(image)
    box = (left, top, left + size, top + size)
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=COLOURS[colour])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_pictures(folder: Path, colour: str, count: int, seed: int = 0) -> Path:
    """Write a folder of pictures of one colour, with captions in metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for n in range(count):
        shape = SHAPES[n % len(SHAPES)]
        name = f"{colour}-{seed}-{n:03d}.png"
        (folder / name).write_bytes(picture(colour, shape, seed * 1000 + n))
        rows.append({"file_name": name, "text": f"a photo of a {colour} {shape}", "shape": shape})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_image_run(folder: Path, family: str = "sd", **changes: object) -> Path:
    """Write pipeline, corpus, adaptation set and config of an image run that takes seconds."""
    save_pipeline(folder / "backbone", family)
    write_pictures(folder / "corpus" / "red", "red", 24)
    write_pictures(folder / "corpus" / "blue", "blue", 24)
    write_pictures(folder / "adaptation", "red", 16, seed=1)
    training = {"steps": 6, "batch_size": 4, "evaluate_every": 3, "warmup": 1, "noise_levels": 4}
    training |= {"adapter": {"rank": 2}, "stretch": 1}
    config = {
        "name": "image-toy",
        "output": str(folder / "runs"),
        "backbone": {
            "kind": "diffusion",
            "path": "backbone",
            "dtype": "float32",
            "diffusion": {"picture": {"resolution": 16}},
        },
        "corpus": [{"path": "corpus/red"}, {"path": "corpus/blue"}],
        "adaptation": {"path": "adaptation"},
        "split": {"folds": 3},
        "retrieval": {"neighbours": 8},
        "selection": {"rows": 12},
        "estimate": {"folds": 2, "rows": 16, "dimension": 64},
        "mixture": {"fall_back": False},
        "scoring": {"scorer": "advantage", "noise_levels": 8},
        "evaluation": {"noise_levels": 8},
        "surrogate": training,
        "finetune": training,
        "runtime": {"root": str(folder / "artifacts"), "device": "cpu", "workers": 2},
    }
    config |= changes
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
