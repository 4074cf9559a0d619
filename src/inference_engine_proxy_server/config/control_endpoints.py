"""The engines' control endpoints: they change an engine for all its clients, or reach other systems through it.

By default, requests to them are not forwarded. Each engine has only the paths that no engine above it has.
"""

from __future__ import annotations

__all__ = ["CONTROL_ENDPOINTS"]

# All routes of vLLM 0.32.0 (vllm/entrypoints); /server_info reveals its environment.
_VLLM = (
    "/sleep, /wake_up, /pause, /resume, /abort_requests, /inference/v1/abort_requests, /collective_rpc,"
    "/server_info, /fault_tolerance/apply, /release_kv_cache_memory, /reset_prefix_cache, /reset_mm_cache,"
    "/reset_encoder_cache, /scale_elastic_ep, /start_profile, /stop_profile,"
    "/v1/load_lora_adapter, /v1/unload_lora_adapter, /init_weight_transfer_engine, /shutdown_weight_transfer_engine,"
    "/start_weight_update, /start_draft_weight_update, /update_weights, /finish_weight_update,"
    "/update_weight_version, /weight_checker"
)
# llama.cpp tools/server/server.cpp at 00dd081: built-in tools and the CORS proxy are off by default; /v1/streams lists
# the conversations of all clients.
_LLAMACPP = (
    "POST /slots/*, POST /props, POST /models*, DELETE /models*, POST /lora-adapters, /tools, /cors-proxy, /v1/streams"
)
# sglang/srt/entrypoints/http_server.py of SGLang 0.5.23; without --admin-api-key, most of them need no other key than
# completions do. /get_server_info reveals its command line.
_SGLANG = (
    "/get_server_info, /set_internal_state, /flush_cache, /hicache/*, /add_external_corpus, /remove_external_corpus,"
    "/set_trace_level, /freeze_gc, /configure_logging, /start_expert_distribution_record,"
    "/stop_expert_distribution_record, /dump_expert_distribution_record, /update_weights_from_disk,"
    "/update_weights_from_tensor, /update_weights_from_distributed, /update_weights_from_ipc, /begin_weight_update,"
    "/end_weight_update, /init_weights_update_group, /destroy_weights_update_group,"
    "/init_weights_send_group_for_remote_instance, /send_weights_to_remote_instance,"
    "/get_remote_instance_transfer_engine_info, /remote_instance_transfer_engine_info, /get_weights_by_name,"
    "/weights_checker, /release_memory_occupation, /resume_memory_occupation, /slow_down, /pd_role_switch,"
    "/load_lora_adapter, /load_lora_adapter_from_tensors, /unload_lora_adapter, /abort_request, /pause_generation,"
    "/continue_generation, /dumper/*"
)
# lmdeploy/serve/openai/endpoints of LMDeploy 0.16.0.
_LMDEPLOY = "/wakeup, /terminate, /distserve/*"
# TensorRT-LLM tensorrt_llm/serve/openai_server.py of 2026; two of them take what they show away from other readers.
_TRTLLM = (
    "/release_memory, /resume_memory, /perf_metrics, /kv_cache_events, POST /steady_clock_offset, /_resource_governor/*"
)
# python/openai/openai_frontend of Triton 2.73.0: load and unload a model.
_TRITON = "POST /v1/models/*"
# server/routes.go of Ollama 0.33.0: download, change and delete models; the account at ollama.com.
_OLLAMA = (
    "/api/pull, /api/push, /api/create, /api/copy, /api/delete, /api/blobs/*, /api/me, /api/signout, /api/user/*,"
    "/api/experimental/*"
)
# 1_developer/2_rest of LM Studio's documentation: load, unload and download models.
_LMSTUDIO = "POST /api/v1/models/*"
# koboldcpp.py of KoboldCpp 1.120; some of them end or read the requests of other clients. It also finds them behind
# other beginnings of a path.
_KOBOLDCPP = (
    "/api/admin/*, /api/extra/shutdown, /api/extra/abort, /api/extra/generate/check, /api/extra/last_logprobs,"
    "/api/extra/data/*, /api/extra/multiplayer/*"
)
# endpoints/core/router.py of TabbyAPI at e632af4.
_TABBYAPI = "POST /v1/model/*, POST /v1/lora/*, /v1/download, POST /v1/template/*, POST /v1/sampling/*"
# src/speaches/routers of Speaches 0.8.3: delete models, load and unload them.
_SPEACHES = "DELETE /v1/models/*, POST /api/ps/*, DELETE /api/ps/*"
# examples/server/server.cpp of whisper.cpp at 233fe1f: load another model, or end the server with a file that is none.
_WHISPERCPP = "POST /load"
# cli/serving/server.py of transformers 5.24.0: load a model, unload all.
_TRANSFORMERS = "/load_model, /reset"

CONTROL_ENDPOINTS = ",".join(
    (
        *(_VLLM, _LLAMACPP, _SGLANG, _LMDEPLOY, _TRTLLM, _TRITON, _OLLAMA, _LMSTUDIO, _KOBOLDCPP, _TABBYAPI),
        *(_SPEACHES, _WHISPERCPP, _TRANSFORMERS),
    )
)
"""Rules of ``BLOCKED_PATHS``, separated by commas."""
