"""Make the objects that the clients read. ``python prepare.py DIRECTORY``."""

import sys
from pathlib import Path

root = Path(sys.argv[1])
(root / "hello.txt").write_text("hello matrix\n")
(root / "data.csv").write_text("a,b\n1,2\n3,4\n")

import numpy  # noqa: E402
import pyarrow  # noqa: E402
import rasterio  # noqa: E402
from deltalake import write_deltalake  # noqa: E402
from rasterio.transform import from_origin  # noqa: E402

write_deltalake(root / "table", pyarrow.table({"a": [1, 2]}))
shape = {"driver": "GTiff", "height": 2, "width": 2, "count": 1, "dtype": "uint8", "crs": "EPSG:4326"}
with rasterio.open(root / "raster.tif", "w", transform=from_origin(0, 0, 1, 1), **shape) as raster:
    raster.write(numpy.ones((2, 2), numpy.uint8), 1)
