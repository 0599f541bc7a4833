"""Write a split of any format as COCO JSON beside its pictures."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from dino.common.files import write_text_whole
from dino.data.coco.index import CocoIndex
from dino.data.shards import SUFFIX, open_picture_file


def write_coco(index: CocoIndex, folder: Path, *, copy: bool = False) -> Path:
    """Write the valid entries to `_annotations.coco.json` in a new folder, with links to the pictures.

    Pictures in tar shards are copied, into folders named after the shards.

    Args:
        index: the split.
        folder: is made; pictures have the names they have below their common folder.
        copy: copy the pictures instead.

    Returns:
        The path of the COCO file.

    Raises:
        FileExistsError: the folder exists.
    """
    folder.mkdir(parents=True)
    paths = [Path(os.path.abspath(index.image_path(position))) for position in range(len(index))]
    common = os.path.commonpath([path.parent for path in paths])
    names = [path.relative_to(common).as_posix() for path in paths]
    plain = [name.replace(f"{SUFFIX}/", "/") for name in names]
    if len(set(plain)) == len(set(names)):  # otherwise a folder is called like a shard
        names = plain
    content = index.ground_truth()
    for path, image, name in zip(paths, content["images"], names, strict=True):
        image["file_name"] = name
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            continue  # two entries of one picture
        source = open_picture_file(path)
        if not isinstance(source, Path):
            with source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
        elif copy:
            shutil.copyfile(source, target)
        else:
            target.symlink_to(source.resolve())
    file = folder / "_annotations.coco.json"
    text = json.dumps(content, ensure_ascii=False) + "\n"
    # Names of files can hold bytes that are not UTF-8; JSON writes these as half a character.
    write_text_whole(file, text.encode("utf-8", "backslashreplace").decode("utf-8"))
    return file
