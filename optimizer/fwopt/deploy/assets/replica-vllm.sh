start() { # vLLM on host $1 (empty: its default), port $2
    local arguments=(serve)
    if [ -n "$model" ]; then arguments+=("$model"); fi
    arguments+=(--config "$here/config.yaml" --port "$2")
    if [ -n "$1" ]; then arguments+=(--host "$1"); fi
    # 16-bit activations beside 4-bit weights, as planned and measured; on a processor vLLM would round them to int8
    export VLLM_CPU_INT4_W4A8="${VLLM_CPU_INT4_W4A8:-0}"
    exec "${VLLM:-vllm}" "${arguments[@]}"
}
