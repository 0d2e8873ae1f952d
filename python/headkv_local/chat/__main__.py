from __future__ import annotations

import sys

from headkv_local.chat import main

sys.exit(main())
