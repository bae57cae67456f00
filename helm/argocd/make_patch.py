"""Writes `argocd-cm.yaml` from the health checks beside this file: `python helm/argocd/make_patch.py`.

One file a kind, `<Kind>/health.lua`, is the source, in the layout Argo CD has for checks it ships. A test fails while the
patch is out of date. Lua stands in it as literal blocks, so that what is installed can be read.
"""

from pathlib import Path
from textwrap import indent

FOLDER = Path(__file__).parent
PATCH = FOLDER / "argocd-cm.yaml"

_HEAD = """\
# Generated from */health.lua by `python helm/argocd/make_patch.py`. Do not edit.
# kubectl -n argocd patch configmap argocd-cm --type merge --patch-file helm/argocd/argocd-cm.yaml
apiVersion: v1
kind: ConfigMap
metadata:
  name: argocd-cm
data:
"""


def make_patch() -> str:
    """Return the patch of Argo CD's ConfigMap that installs every check, sorted by kind."""
    checks = sorted(FOLDER.glob("*/health.lua"))
    return _HEAD + "".join(_entry(check.parent.name, check.read_text(encoding="utf-8")) for check in checks)


def _entry(kind: str, lua: str) -> str:
    return f"  resource.customizations.health.dalang.dev_{kind}: |\n{indent(lua, '    ')}"


if __name__ == "__main__":
    PATCH.write_text(make_patch(), encoding="utf-8")
