"""Write all hostile files into a folder: python tests/attacks/make_attacks.py FOLDER.

They are made when needed and never kept. Their names say what is wrong with them and begin with the code that
the reader must give, as in headkv.h.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from attack_cases import cases
from hostile_gguf import model, sidecar


def main(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    files = [(f"{case.code} {case.name}", case.content) for case in cases()]
    files += [("OK sidecar", sidecar().content()), ("OK model", model().content())]
    for number, (name, content) in enumerate(files):
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", name)[:100]
        (folder / f"{number:03}-{slug}.gguf").write_bytes(content)
    print(f"{len(files)} files in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
