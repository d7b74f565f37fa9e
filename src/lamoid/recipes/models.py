"""`lamoid models`: which models have been fetched, and which can be."""

import json
from dataclasses import dataclass

from lamoid.recipes.recipe import option


@dataclass(frozen=True)
class Recipe:
    """List the fetched models with size and place, and those that `lamoid get` knows."""

    json: bool = option(False, "print one JSON object: directory, fetched, available")


def run(recipe: Recipe) -> int:
    """Print both lists."""
    from lamoid.recipes.catalogue import CATALOGUE, facts_of, fetched, models_directory

    there = [
        {
            "name": name,
            "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            "path": str(folder),
            **facts_of(folder),
        }
        for name, folder in fetched().items()
    ]
    available = [
        {"name": name, "download_bytes": package.wheel_bytes, "license": package.license, "about": package.about}
        for name, package in CATALOGUE.items()
    ]
    if recipe.json:
        lists = {"directory": str(models_directory()), "fetched": there, "available": available}
        print(json.dumps(lists, ensure_ascii=False))
        return 0
    print("fetched" if there else "fetched: none")
    for model in there:
        print(f"  {model['name']:<12} {model['bytes'] / 1e6:>8,.0f} MB  {model['path']}")  # type: ignore[operator]
    print("can be fetched with lamoid get NAME")
    for model in available:
        print(f"  {model['name']:<12} {model['download_bytes'] / 1e6:>8,.0f} MB  {model['about']}")  # type: ignore[operator]
    print("  hf:ORG/NAME               safetensors from the Hugging Face Hub (extra: hub)")
    return 0
