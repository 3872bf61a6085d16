# Sourced: run_table NAME [arguments of script/rows.py and script/table.py] runs a table's missing rows and prints it.
here=$(dirname "$0")
[ -f "$here/setup.sh" ] || here=$here/..
. "$here/setup.sh"

render_mini() {
    case " $* " in
        *" --smoke "*) "$PYTHON" -m mini.render --root asset/mini/data --only spair ;;
        *" --mini "*) "$PYTHON" -m mini.render --root asset/mini/data ;;
    esac
}

# With --list the plan is all that is printed.
only_listing() {
    case " $* " in *" --list "*) ;; *) return 1 ;; esac
}

# Rows that cannot run are named in the table with the reason; only an interruption stops here.
run_rows() {
    "$PYTHON" script/rows.py "$@" || { status=$?; [ $status -eq 1 ] || exit $status; }
}

run_table() {
    render_mini "$@"
    run_rows "$@"
    only_listing "$@" || "$PYTHON" script/table.py "$@"
}
