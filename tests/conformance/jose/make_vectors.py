"""Has every peer that this machine can run make its bundles for tests/vectors/bundle/peers/."""

from __future__ import annotations

import json
import sys

from tests.conformance.jose.peers import CASES, PEERS, able
from tests.conformance.jose.request import seal_request
from tests.vectors.bundle.generate import HERE


def main() -> int:
    for peer in PEERS.values():
        if peer.missing:
            sys.stderr.write(f"{peer.name}: {peer.missing}\n")
            continue
        for case in CASES:
            if able(peer, case):
                request = seal_request(case)
                vector = {
                    "name": f"{peer.name}-{case}",
                    "rule": f"made by {peer.name}",
                    "expect": "accepted",
                    "claims": request["claims"],
                    "bundle": peer.run("seal", request),
                }
                (HERE / "peers" / f"{vector['name']}.json").write_text(json.dumps(vector, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
