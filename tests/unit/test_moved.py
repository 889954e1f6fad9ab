"""Import paths that README or docs once showed still work, and say where the names are now."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("pianissimo.loading", "pianissimo.zoo.load", ["load"]),
        (
            "pianissimo.decoding.arpa",
            "pianissimo.decoding.lm.arpa",
            ["count_ngrams", "read_arpa", "write_arpa"],
        ),
        ("pianissimo.adapters.espnet", "pianissimo.recognizers.espnet", ["read_espnet"]),
        ("pianissimo.adapters.glm_asr", "pianissimo.recognizers.glm_asr", ["read_glm_asr"]),
    ],
)
def test_an_old_path_gives_the_new_names_and_a_warning(
    old: str, new: str, names: list[str]
) -> None:
    code = f"""
import importlib, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    old = importlib.import_module({old!r})
new = importlib.import_module({new!r})
assert all(getattr(old, name) is getattr(new, name) for name in {names})
print(*[str(each.message) for each in caught if each.category is DeprecationWarning])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{old} is now {new}" in done.stdout
