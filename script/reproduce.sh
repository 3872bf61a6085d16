#!/bin/sh
# Runs every row of Tables 1 to 4 and the timestep figure of the paper, cheap ones first, and writes one report page:
# asset/sd4match/report.html. Stopping is safe: the same command goes on from there. Rows whose data or weights are not
# here are named with the reason.
# --mini: on the mini world, into asset/mini/reproduce (under an hour on 2 CPU cores); --mini --smoke: a short form,
# into asset/mini/smoke, which fails if a row fails. Other arguments as in script/rows.py: --seeds 0 1 2, --opts ...
. "$(dirname "$0")/run_table.sh"
render_mini "$@"
case " $* " in
    *" --smoke "*) "$PYTHON" script/rows.py table1 "$@" ;;
    *) run_rows table1 table2 table3 table4 test_timestep pictures "$@" ;;
esac
only_listing "$@" && exit
"$PYTHON" script/table.py --report "$@" | tail -n 2
