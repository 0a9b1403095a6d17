start() { # llama-server on host $1 (empty: every address), port $2
    unset "${!LLAMA_ARG_@}" # llama-server.env alone configures it
    set -a
    # shellcheck source=/dev/null
    . "$here/llama-server.env"
    set +a
    local file=$LLAMA_ARG_MODEL
    if [ -n "$model" ]; then file=$model; fi
    if [ -d "$file" ]; then file=$file/$(basename "$LLAMA_ARG_MODEL"); fi
    [ -f "$file" ] || die "$file does not exist; set FWOPT_MODEL to the GGUF file or its folder (llama-server.env says how it is made)"
    LLAMA_ARG_MODEL=$file exec "${LLAMA_SERVER:-llama-server}" --host "${1:-0.0.0.0}" --port "$2"
}
