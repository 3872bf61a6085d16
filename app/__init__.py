"""The browser app: photos, points, and the networks behind them. demo.py starts it; app/page.py is the page."""
