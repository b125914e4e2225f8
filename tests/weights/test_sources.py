"""The table of weights."""

import re

from anomalygpt.weights.fetch import CONVERTERS, load_sources


def test_shipped_table_asks_the_hub_first_pins_every_wheel_and_names_authors_and_licence() -> None:
    for weight in load_sources().values():
        first, *others = weight.sources
        assert first["hub"]
        assert set(weight.files) <= set(first["files"])
        for source in others:
            assert "==" in source["wheel"] and source["member"]
            assert re.fullmatch("[0-9a-f]{64}", source["sha256"])
            assert source["converter"] in CONVERTERS
        assert weight.licence == "Apache-2.0"
        assert weight.origin
