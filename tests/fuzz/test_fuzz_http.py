"""Every route of /openapi.json, asked in every shape: none fails, each answers as it says."""

import pytest
from fuzzing import fuzzing
from hypothesis import given
from hypothesis import strategies as st
from serving import Server, pcm, speech, wav

from pianissimo.serve.app import create_app
from pianissimo.serve.settings import Settings

schemathesis = pytest.importorskip("schemathesis", reason="no schemathesis: the extra dev has it")
pytestmark = pytest.mark.filterwarnings("ignore")  # its own are not ours

schemathesis.checks.load_all_checks()
CHECKS = schemathesis.checks.CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "response_headers_conformance",
    ]
)
SECONDS = 60.0
SOUND = wav(speech(0.5))
SOUNDS = [SOUND, SOUND[:99], SOUND[:-3], b"RIFF" + SOUND[:44] * 9, pcm(speech(0.2)), b"", b"ID3"]
schemathesis.openapi.format("binary", st.sampled_from(SOUNDS) | st.binary(max_size=200))
ROUTES = schemathesis.openapi.from_dict(create_app(Settings()).openapi())
OPERATIONS = [found.ok() for found in ROUTES.exclude(path_regex="/drain$").get_all_operations()]
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_no_request_makes_the_server_fail(
    fuzzed: Server, operation: schemathesis.APIOperation
) -> None:
    cases = st.one_of([operation.as_strategy(generation_mode=mode) for mode in MODES])
    headers = {"Authorization": "Bearer admin"} if operation.path.startswith("/admin") else None

    @fuzzing(10)
    @given(case=cases)
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(fuzzed.http, headers=headers, checks=CHECKS, timeout=SECONDS)

    ask()
    fuzzed.wait_until_empty()
