start() { # SGLang on host $1 (empty: every address), port $2
    local arguments=(-m sglang.launch_server --config "$here/config.yaml" --host "${1:-0.0.0.0}" --port "$2")
    if [ -n "$model" ]; then arguments+=(--model-path "$model"); fi
    exec "${SGLANG_PYTHON:-python3}" "${arguments[@]}"
}
