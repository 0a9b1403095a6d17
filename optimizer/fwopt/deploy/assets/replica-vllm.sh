start() { # vLLM on host $1 (empty: its default), port $2
    local arguments=(serve)
    if [ -n "$model" ]; then arguments+=("$model"); fi
    arguments+=(--config "$here/config.yaml" --port "$2")
    if [ -n "$1" ]; then arguments+=(--host "$1"); fi
    exec "${VLLM:-vllm}" "${arguments[@]}"
}
