"""What each streaming recording holds, written down: its first output, and how many events have some.

``FIRST[name]`` = (nanoseconds from the request to the piece that completes the first event with output,
events with output, events without).  An event without output is a role, an empty delta, a call's name, a
usage or timings event, a lifecycle event of an API, an error, ``null``; ``[DONE]`` and comments are none.

The numbers were read by ``tests/helpers/naive.py``; the rows with a comment were checked by eye against the
raw pieces too.  They are literals so that no reader can change them unseen.
"""

from __future__ import annotations

FIRST: dict[str, tuple[int, int, int]] = {
    "llama.cpp-b10434__chat_stream": (5_927_245, 40, 2),
    "llama.cpp-b10434__chat_stream_include_usage": (2_925_273, 40, 3),
    "llama.cpp-b10434__chat_stream_long_prompt": (767_236_645, 12, 3),
    "llama.cpp-b10434__chat_stream_max_tokens_1": (3_316_100, 1, 3),
    "llama.cpp-b10434__chat_stream_tools_required": (19_467_336, 80, 2),
    "llama.cpp-b10434__responses_stream": (3_192_231, 24, 8),  # in one piece with response.created
    "llama.cpp__chat_client_disconnect": (33_008_778, 58, 1),
    "llama.cpp__chat_stream": (7_574_783, 39, 2),
    "llama.cpp__chat_stream_conn_close": (5_192_642, 12, 2),
    "llama.cpp__chat_stream_include_usage": (2_722_467, 39, 3),
    "llama.cpp__chat_stream_logprobs": (6_177_982, 16, 2),
    "llama.cpp__chat_stream_long_output_1000": (1_453_120, 834, 3),
    "llama.cpp__chat_stream_long_prompt": (1_447_254_480, 8, 3),  # in one piece with the role event
    "llama.cpp__chat_stream_max_tokens_1": (2_481_167, 1, 3),
    "llama.cpp__chat_stream_n2": (36_563_094, 32, 6),  # of choice 1
    "llama.cpp__chat_stream_ping_comments": (3_455_649_047, 6, 3),  # behind two comments
    "llama.cpp__chat_stream_stop": (2_839_818, 5, 2),
    "llama.cpp__chat_stream_timings_per_token": (5_516_150, 16, 2),
    "llama.cpp__chat_stream_tools_auto": (3_215_274, 24, 2),
    "llama.cpp__chat_stream_tools_required": (13_917_971, 80, 2),
    "llama.cpp__completions_stream": (2_007_497, 40, 1),
    "llama.cpp__completions_stream_two_prompts": (2_168_272, 20, 3),  # behind ``null``, and of choice 1
    "llama.cpp__error_unknown_model": (3_995_290, 39, 2),
    "llama.cpp__messages_stream": (5_549_789, 23, 5),  # in one piece with message_start
    "llama.cpp__native_completion_stream": (3_488_544, 40, 1),  # no role event goes before
    "llama.cpp__queued_behind_4": (1_053_800_515, 10, 2),
    "llama.cpp__responses_stream": (5_015_489, 20, 8),
    "llama.cpp__server_SIGTERM_mid_stream": (6_528_905, 305, 1),
    "llama.cpp__stall_intruder_b256_ub256": (2_742_486_791, 4, 1),  # 6,500 tokens of prompt before it
    "llama.cpp__stall_intruder_default_b2048_ub512": (2_691_908_488, 4, 1),
    "llama.cpp__stall_victim_b256_ub256": (3_924_591, 799, 1),  # nothing goes before
    "transformers__chat_client_disconnect": (59_695_038, 38, 1),
    "transformers__chat_stream": (889_797_000, 39, 2),  # the role event came 46 ms before
    "transformers__chat_stream_conn_close": (14_013_282, 12, 2),
    "transformers__chat_stream_continuous_usage": (18_566_122, 39, 2),
    "transformers__chat_stream_http10": (10_029_223, 8, 2),
    "transformers__chat_stream_include_usage": (17_202_488, 39, 2),
    "transformers__chat_stream_logprobs": (16_005_173, 15, 2),
    "transformers__chat_stream_long_output_800": (22_894_579, 779, 2),
    "transformers__chat_stream_long_prompt": (242_265_879, 11, 2),  # behind a role event before the prefill
    "transformers__chat_stream_max_tokens_1": (14_833_939, 1, 2),
    "transformers__chat_stream_n2": (17_134_094, 15, 2),
    "transformers__chat_stream_stop": (35_537_053, 3, 2),
    "transformers__chat_stream_tools_required": (25_518_348, 79, 2),
    "transformers__completions_stream": (15_907_669, 38, 1),
    "transformers__completions_stream_n2_echo": (23_715_585, 10, 1),
    "transformers__error_context_too_long": (6_258_865_933, 26, 2),  # 6 s behind its role event
    "transformers__responses_nonstream": (89_178_052, 22, 8),  # 74 ms behind response.in_progress
    "transformers__stall_intruder_continuous_batching": (32_330_081_627, 4, 1),  # 32 s behind the head
    "vllm__chat_client_disconnect": (62_561_041, 38, 1),
    "vllm__chat_stream": (48_173_949, 39, 1),  # behind a role event with content ""
    "vllm__chat_stream_conn_close": (15_311_377, 12, 1),
    "vllm__chat_stream_continuous_usage": (17_074_274, 39, 2),  # two tokens at once
    "vllm__chat_stream_http10": (11_389_425, 8, 1),
    "vllm__chat_stream_include_usage": (18_131_159, 38, 2),
    "vllm__chat_stream_logprobs": (3_304_163_797, 15, 2),  # a silent one has a log probability, no text
    "vllm__chat_stream_long_output_1000": (12_905_036, 868, 2),
    "vllm__chat_stream_long_prompt": (159_747_042, 12, 2),
    "vllm__chat_stream_max_tokens_1": (14_284_450, 1, 2),
    "vllm__chat_stream_n2": (12_841_077, 32, 3),  # behind two role events
    "vllm__chat_stream_stop": (13_517_115, 4, 1),
    "vllm__chat_stream_tools_required": (238_409_264, 52, 2),  # behind the role and the call's name
    "vllm__completions_stream": (9_090_246, 40, 1),
    "vllm__completions_stream_n2_echo": (11_891_474, 20, 0),  # the prompt's echo and the first token at once
    "vllm__engine_SIGKILL_mid_stream": (82_502_115, 58, 2),  # its silent events: the role, the error
    "vllm__messages_stream": (16_628_534, 22, 5),  # in one piece with message_start
    "vllm__responses_stream": (40_997_047, 22, 8),  # 33 ms behind response.created
    "vllm__server_SIGTERM_mid_stream": (98_517_990, 86, 2),
    "vllm__spec_ngram_chat_greedy": (18_159_725, 69, 2),
    "vllm__stall_intruder_batched_tokens_128": (637_295_270, 4, 0),
    "vllm__stall_intruder_no_chunked_prefill": (938_478_430, 3, 1),  # behind an event with text ""
    "vllm__stream_interval4_chat": (44_525_019, 16, 2),  # one token; later events bring four
}
