"""Make the table and the picture that clients read. ``python prepare.py DIRECTORY``."""

import sys
from pathlib import Path

root = Path(sys.argv[1])

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import rasterio  # noqa: E402
from deltalake import write_deltalake  # noqa: E402
from rasterio.transform import from_origin  # noqa: E402

write_deltalake(root / "table", pa.table({"a": [1, 2]}))
shape = {"driver": "GTiff", "height": 2, "width": 2, "count": 1, "dtype": "uint8", "crs": "EPSG:4326"}
with rasterio.open(root / "raster.tif", "w", transform=from_origin(0, 0, 1, 1), **shape) as raster:
    raster.write(np.ones((2, 2), np.uint8), 1)
