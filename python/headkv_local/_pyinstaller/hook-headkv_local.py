"""The package as it was installed: PyInstaller sees what is imported, not what is opened by name."""

from PyInstaller.utils.hooks import collect_data_files, collect_dynamic_libs, copy_metadata

from headkv_local import _LAZY

datas = collect_data_files("headkv_local", excludes=["_sdk/**"]) + copy_metadata("headkv-local")
# llama_cpp with its libraries, also those for other CPUs, where _core/library.py looks for them
datas += collect_data_files("headkv_local", includes=["_vendor/**/*.py"], include_py_files=True)
binaries = collect_dynamic_libs("headkv_local")
hiddenimports = [f"headkv_local.{name}" for name in sorted(set(_LAZY.values()))]
hiddenimports.append("headkv_local._core.native._abi")
