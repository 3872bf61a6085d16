#!/bin/sh
# Runs every row of Tables 1 to 4, of the timestep figure and of GeoAware-SC's table, draws a few pairs, and writes a report:
# asset/sd4match/report.html. Stopping is safe: the same command goes on from there, and what is finished is skipped.
# Rows whose data or weights are not here are named with the reason; exit status 1 if a row failed.
# --mini: on the mini world, into asset/mini/reproduce (one to two hours on 2 CPU cores); --mini --smoke: two rows with a
# few steps, into asset/mini/smoke, whose numbers are none. Other arguments as in script/table.py: --seeds 0 1 2, ...
. "$(dirname "$0")/run_table.sh"
case " $* " in
    *" --smoke "*) tables="table1" ;;
    *) tables="table1 table2 table3 table4 test_timestep table_geoaware" ;;
esac
render_mini "$@"
failed=0
run_rows $tables "$@" || failed=$?
[ $failed -lt 128 ] || exit $failed
run_rows --pictures "$@" || failed=$?
[ $failed -lt 128 ] || exit $failed
case " $* " in
    *" --smoke "* | *" --only "*) ;;
    *" --mini "*) sh "$here/rankings.sh" --mini || failed=$? ;; # with its own arguments: docs/dsd.md
    *) sh "$here/rankings.sh" || failed=$? ;;
esac
[ $failed -lt 128 ] || exit $failed
"$PYTHON" script/table.py --report "$@" | tail -n 2
exit $failed
