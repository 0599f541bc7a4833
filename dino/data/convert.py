"""Write a split of any format as COCO JSON beside its pictures."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from dino.common.files import write_text_whole
from dino.data.coco.index import CocoIndex


def write_coco(index: CocoIndex, folder: Path, *, copy: bool = False) -> Path:
    """Write the valid entries to `_annotations.coco.json` in a new folder, with links to the pictures.

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
    content = index.ground_truth()
    for position, image in enumerate(content["images"]):
        source = paths[position].resolve()
        image["file_name"] = paths[position].relative_to(common).as_posix()
        target = folder / image["file_name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            continue  # two entries of one picture
        if copy:
            shutil.copyfile(source, target)
        else:
            target.symlink_to(source)
    file = folder / "_annotations.coco.json"
    write_text_whole(file, json.dumps(content, ensure_ascii=False) + "\n")
    return file
