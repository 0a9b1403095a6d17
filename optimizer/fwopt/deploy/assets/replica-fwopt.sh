start() { # the reference engine on host $1 (empty: every address), port $2
    local arguments=(serve --config "$here/candidate.yaml" --host "${1:-0.0.0.0}" --port "$2")
    if [ -n "$model" ]; then arguments+=(--model "$model"); fi
    exec "${FWOPT:-fwopt}" "${arguments[@]}"
}
