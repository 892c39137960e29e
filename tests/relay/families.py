"""What the bodies of each family tell, from the references that ``proxy/relay/bodies.py`` names."""

from __future__ import annotations

from typing import Any

from proxy.link import Usage
from tests.helpers.taps import CHAT


def usage(
    prompt: int | None, output: int | None, cached: int | None = None, hidden: int | None = None
) -> Usage:
    return Usage(prompt, output, cached, hidden)


#: (name, path, body, usage, finish reason, id)
FAMILIES: list[tuple[str, str, Any, Usage, str | None, str | None]] = [
    (
        "openai embeddings",
        "/v1/embeddings",
        {
            "object": "list",
            "data": [{"embedding": [0.1, -2e-5]}],
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        },
        usage(8, None),
        None,
        None,
    ),
    (
        "openai chat that reasons",
        CHAT,
        {
            "id": "chatcmpl-2",
            "choices": [
                {"message": {"content": "secret"}, "finish_reason": "length"},
                {"finish_reason": "stop"},
            ],
            "usage": {
                "prompt_tokens": 9,
                "completion_tokens": 50,
                "completion_tokens_details": {"reasoning_tokens": 40},
                "prompt_tokens_details": None,
            },
        },
        usage(9, 50, None, 40),
        "length",
        "chatcmpl-2",
    ),
    (
        "openai responses, completed",
        "/v1/responses",
        {
            "id": "resp_1",
            "object": "response",
            "status": "completed",
            "error": None,
            "incomplete_details": None,
            "output": [
                {"id": "msg_1", "type": "message", "status": "in_progress", "content": [{"text": "secret"}]}
            ],
            "usage": {
                "input_tokens": 36,
                "input_tokens_details": {"cached_tokens": 12},
                "output_tokens": 87,
                "output_tokens_details": {"reasoning_tokens": 7},
            },
        },
        usage(36, 87, 12, 7),
        "completed",
        "resp_1",
    ),
    (
        "openai responses, incomplete",
        "/v1/responses",
        {
            "id": "resp_1",
            "object": "response",
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "usage": {"input_tokens": 3, "output_tokens": 4},
        },
        usage(3, 4),
        "max_output_tokens",
        "resp_1",
    ),
    (
        "anthropic: what was cached or written to the cache is not in input_tokens",
        "/v1/messages",
        {
            "id": "msg_1",
            "type": "message",
            "content": [{"type": "text", "text": "secret"}],
            "stop_reason": "end_turn",
            "usage": {
                "input_tokens": 10,
                "cache_creation_input_tokens": 100,
                "cache_read_input_tokens": 1000,
                "output_tokens": 5,
            },
        },
        usage(1110, 5, 1000),
        "end_turn",
        "msg_1",
    ),
    (
        "anthropic, written to the cache only",
        "/v1/messages",
        {"id": "msg_1", "stop_reason": None, "usage": {"input_tokens": 10, "cache_creation_input_tokens": 7}},
        usage(17, None),
        None,
        "msg_1",
    ),
    (
        "openai responses, in the background",
        "/v1/responses",
        {"id": "resp_1", "object": "response", "status": "in_progress", "usage": None},
        usage(None, None),
        None,
        "resp_1",
    ),
    (
        "numbers that are none",
        "/generate",
        [{"meta_info": {"prompt_tokens": 2**52, "completion_tokens": 3, "cached_tokens": -1}}] * 2,
        usage(None, 6),
        None,
        None,
    ),
    (
        "anthropic, nothing cached",
        "/v1/messages",
        {"id": "msg_1", "stop_reason": "tool_use", "usage": {"input_tokens": 10, "output_tokens": 5}},
        usage(10, 5),
        "tool_use",
        "msg_1",
    ),
    (
        "ollama chat",
        "/api/chat",
        {
            "model": "m",
            "message": {"content": "secret"},
            "done_reason": "stop",
            "done": True,
            "prompt_eval_count": 26,
            "eval_count": 298,
        },
        usage(26, 298),
        "stop",
        None,
    ),
    (
        "ollama, the prompt was cached",
        "/api/generate",
        {"response": "secret", "done": True, "done_reason": "length", "context": [1, 2], "eval_count": 3},
        usage(None, 3),
        "length",
        None,
    ),
    (
        "tgi, one in a list",
        "/",
        [
            {
                "generated_text": "secret",
                "details": {
                    "finish_reason": "eos_token",
                    "generated_tokens": 20,
                    "prefill": [{"id": 1, "text": "secret"}] * 4,
                },
            }
        ],
        usage(4, 20),
        "eos_token",
        None,
    ),
    (
        "tgi, an object",
        "/generate",
        {
            "generated_text": "secret",
            "details": {"finish_reason": "length", "generated_tokens": 2, "prefill": [], "input_length": 7},
        },
        usage(7, 2),
        "length",
        None,
    ),
    (
        "sglang",
        "/generate",
        {
            "text": "secret",
            "meta_info": {
                "id": "abc",
                "finish_reason": {"type": "stop", "matched": 2},
                "prompt_tokens": 5,
                "completion_tokens": 16,
                "cached_tokens": 4,
            },
        },
        usage(5, 16, 4),
        "stop",
        "abc",
    ),
    (
        "sglang, a batch",
        "/generate",
        [
            {"meta_info": {"id": "a", "finish_reason": None, "prompt_tokens": 5, "completion_tokens": 16}},
            {
                "meta_info": {
                    "id": "b",
                    "finish_reason": {"type": "length"},
                    "prompt_tokens": 2,
                    "completion_tokens": 4,
                }
            },
        ],
        usage(7, 20),
        "length",
        "a",
    ),
    (
        "llama.cpp",
        "/completion",
        {
            "content": "secret",
            "id_slot": 0,
            "stop": True,
            "tokens_predicted": 16,
            "tokens_evaluated": 9,
            "stop_type": "limit",
            "timings": {"cache_n": 8, "prompt_n": 1, "predicted_n": 16},
        },
        usage(9, 16, 8),
        "limit",
        None,
    ),
    (
        "llama.cpp, an older one",
        "/completion",
        {
            "content": "secret",
            "stopped_eos": True,
            "stopped_limit": False,
            "timings": {"prompt_n": 3, "predicted_n": 4},
        },
        usage(3, 4),
        "eos",
        None,
    ),
    (
        "gemini",
        "/v1beta/models/gemini:generateContent",
        {
            "candidates": [
                {"content": {"parts": [{"text": "secret"}]}, "finishReason": "MAX_TOKENS", "index": 0}
            ],
            "usageMetadata": {
                "promptTokenCount": 8,
                "candidatesTokenCount": 20,
                "thoughtsTokenCount": 30,
                "cachedContentTokenCount": 4,
                "totalTokenCount": 58,
            },
            "responseId": "r-1",
        },
        usage(8, 50, 4, 30),
        "MAX_TOKENS",
        "r-1",
    ),
    (
        "gemini, a stream in a list: the last counts",
        "/v1beta/models/gemini:streamGenerateContent",
        [
            {"usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 2}, "responseId": "r-1"},
            {
                "candidates": [{"finishReason": "STOP"}],
                "usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 5},
            },
        ],
        usage(8, 5),
        "STOP",
        "r-1",
    ),
    (
        "gemini, blocked",
        "/v1beta/models/gemini:generateContent",
        {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 8}},
        usage(8, None),
        "SAFETY",
        None,
    ),
    (
        "triton",
        "/v2/models/m/generate",
        {"model_name": "m", "text_output": "secret"},
        usage(None, None),
        None,
        None,
    ),
]
