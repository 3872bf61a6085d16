# Sourced: run_table NAME ... runs the unfinished rows of tables, one after the other, and prints the tables. Stopping is
# safe: the same command goes on. Arguments, as of the scripts that call it: --mini for the mini world; others as in
# script/table.py: --seeds 0 1 2, --opts KEY VALUE ...; with --commands the list is all that is printed.
here=$(dirname "$0")
[ -f "$here/setup.sh" ] || here=$here/..
. "$here/setup.sh"

render_mini() {
    case " $* " in
        *" --smoke "*) "$PYTHON" -m mini.render --root asset/mini/data --only spair >&2 ;;
        *" --mini "*) "$PYTHON" -m mini.render --root asset/mini/data >&2 ;;
    esac
}

# A row that fails is named and the others go on; an interruption stops everything.
run_rows() {
    lines=$("$PYTHON" "${TABLE:-script/table.py}" "$@" --commands --launcher '"$PYTHON"') || exit $?
    case " $* " in *" --commands "*) printf '%s\n' "$lines"; exit ;; esac
    [ -n "$lines" ] || return 0
    printf '%s\n' "$lines" | {
        number=0 failed=0 total=$(printf '%s\n' "$lines" | wc -l)
        while IFS= read -r line; do
            number=$((number + 1))
            printf '\n== %s of %s: %s\n' "$number" "$total" "$line"
            sh -c "$line" </dev/null && continue
            status=$?
            [ $status -lt 128 ] || exit $status
            echo "failed: $line" >&2
            failed=1
        done
        exit $failed
    }
}

run_table() {
    render_mini "$@"
    failed=0
    run_rows "$@" || failed=$?
    [ $failed -lt 128 ] || exit $failed
    "$PYTHON" "${TABLE:-script/table.py}" "$@"
    exit $failed
}
