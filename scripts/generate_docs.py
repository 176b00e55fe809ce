"""Write the documents that are made from the code, or with --check say which of them are stale."""

from __future__ import annotations

import sys
from pathlib import Path

from control.operator.reference import reference
from overlay.verdict import DropReason

ROOT = Path(__file__).resolve().parent.parent


def drop_reasons() -> str:
    """docs/drop-reasons.md: every reason with an anchor, as `DropReason` has it."""
    lines = [
        "# Drop reasons",
        "",
        "<!-- Made from overlay/verdict.py by `make docs`. -->",
        "",
        "No frame disappears without one of these. `weft drops` counts them, per network.",
        "*Ingress* is underlay → device, *egress* is device → underlay.",
        "",
        "What is lost outside of weft is counted there: by the underlay's device once a datagram was sent",
        "(`ip -s link show eth0`, TX dropped: a veth pair keeps 256 packets), and by the program's own",
        "socket once a frame was delivered (`nstat -az UdpRcvbufErrors`).",
    ]
    for reason in DropReason:
        sentence, _, direction = reason.value.rpartition(" [")
        lines += ["", f"## {reason.name}", "", f"*{direction.rstrip(']')}*: {sentence}."]
    return "\n".join(lines) + "\n"


DOCUMENTS = {"docs/config.md": reference, "docs/drop-reasons.md": drop_reasons}


def main() -> int:
    """Write or check; the exit code says whether anything was stale."""
    stale = []
    for path, make in DOCUMENTS.items():
        file, text = ROOT / path, make()
        if file.exists() and file.read_text() == text:
            continue
        stale.append(path)
        if "--check" not in sys.argv:
            file.write_text(text)
            print(f"docs: wrote {path}")
    if stale and "--check" in sys.argv:
        print(f"docs: stale: {', '.join(stale)}\n  try: make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
