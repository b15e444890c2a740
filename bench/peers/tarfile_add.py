"""Pack what is in a folder by Python's tarfile. usage: tarfile_add.py --out FOLDER SOURCE"""

import os
import sys
import tarfile

_, _, out, source = sys.argv
with tarfile.open(f"{out}/out.tar", "w") as tar:
    for name in os.listdir(source):
        tar.add(f"{source}/{name}", arcname=name)
