"""The list of layouts, `data.layout`. The readers, `ageray prepare --help`, docs/prepare.md and
README follow it.

Imports nothing heavy, so that `--help` is quick.
"""

from __future__ import annotations

from typing import NamedTuple


class Layout(NamedTuple):
    """One layout. Its reader is the function `read_<name>` of the module
    `ageray.prepare.layouts.<module>`.
    """

    name: str
    """Value of `data.layout`."""
    module: str
    """Module of the reader."""
    title: str
    """Name of the data set."""
    form: str
    """How the source holds the labels, in one line."""


LAYOUTS = (
    Layout("utkface", "named", "UTKFace", "files named age_gender_race_datetime.jpg.chip.jpg"),
    Layout("fgnet", "fgnet", "FG-NET", "images/001A02.JPG with points/001a02.pts"),
    Layout("morph", "morph", "MORPH II", "a CSV with photo, age, id_num; or files named 009055_1M54.JPG"),
    Layout(
        "cacd", "cacd", "CACD", "celebrity2000_meta.mat, a CSV, or files named 53_Robin_Williams_0001.jpg"
    ),
    Layout("afad", "named", "AFAD", "folders of age and gender: 15/111/638660-1.jpg"),
    Layout("agedb", "named", "AgeDB", "files named 0_MariaCallas_35_f.jpg"),
    Layout("chalearn_lap", "chalearn_lap", "ChaLearn LAP", "train_gt.csv and the like (image, mean, stdv)"),
    Layout(
        "imdb_wiki", "imdb_wiki", "IMDB-WIKI", "imdb.mat, wiki.mat; data.filters says which photos are taken"
    ),
    Layout("megaage_asian", "megaage_asian", "MegaAge-Asian", "list/train_name.txt, list/train_age.txt"),
    Layout(
        "adience", "adience", "Adience", "fold_0_data.txt and the like; a band of ages becomes its middle"
    ),
    Layout("manifest", "table", "CSV or Parquet", "a .csv or .parquet file with a column 'image' or 'uri'"),
    Layout("folder", "named", "folder", "any photos, without labels"),
)


def help_text() -> str:
    """A line for each layout: its name and its form."""
    width = max(len(layout.name) for layout in LAYOUTS)
    return "\n".join(f"  {layout.name:<{width}}  {layout.form}" for layout in LAYOUTS)
