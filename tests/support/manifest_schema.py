"""The JSON Schema of a manifest's document, from the models. Write it anew: python -m tests.support.manifest_schema"""

import json
from pathlib import Path

from payme_ops.backup.manifest import VERSION, Manifest

FILE = Path(__file__).parents[2] / "docs" / "manifest.schema.json"


def generated() -> str:
    """What docs/manifest.schema.json must hold."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"payme-ops backup manifest, version {VERSION}",
        "description": 'The "document" of a signed manifest.json (plugins/payme_ops/foundation/signing.py).',
        **{key: value for key, value in Manifest.model_json_schema().items() if key not in ("title", "description")},
    }
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(generated())
