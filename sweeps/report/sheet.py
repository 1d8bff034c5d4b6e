"""The style sheet of a report, for light and dark."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #5b6672; --line: #dfe3e8; --back: #f7f8fa; --card: #ffffff;
  --code: #eef1f4; --warn: #fdf1ee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9aa5b1; --line: #323f4b; --back: #151a20;
  --card: #1f262e; --code: #262f38; --warn: #3a2622; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.2rem 1.2rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 1.2rem; }
h2 { font-size: 1.45rem; margin: 3rem 0 1rem; padding-top: 1rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.1rem; margin: 2.4rem 0 .7rem; }
.kicker { color: var(--soft); margin: 0; font-size: .9rem; }
.lead { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.3rem; }
.formula { font: 600 1.12rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: .7rem 0;
  overflow-wrap: anywhere; }
.small { color: var(--soft); font-size: .88rem; margin: .3rem 0 0; }
.badge { display: inline-block; margin: 0; padding: .15rem .7rem; border-radius: 99px; font-size: .88rem;
  font-weight: 600; color: #fff; background: #0072b2; }
.badge.validated { background: #007a56; }
.badge.rejected, .badge.none { background: #b03a2e; }
.badge.cannot-tell { background: #8a5a00; }
figure { margin: 1.2rem 0; background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem 1rem .7rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: #5b6672; font-size: .86rem; line-height: 1.45; margin-top: .7rem; }
pre { background: var(--code); border-radius: 8px; padding: .75rem 1rem; overflow-x: auto;
  font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: .5rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
.grid { width: 100%; }
.grid th, .grid td { text-align: right; padding: .38rem .7rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
.grid th { color: var(--soft); font-weight: 600; }
.grid th:last-child, .grid td:last-child { text-align: left; }
.wordy td { white-space: normal; text-align: left; vertical-align: top; }
.wordy th { text-align: left; }
.grid tr.censored { background: var(--warn); }
.pairs th { text-align: left; color: var(--soft); font-weight: 500; padding: .22rem 1.6rem .22rem 0;
  vertical-align: top; }
.pairs td { padding: .22rem 0; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; margin: .4rem 0; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .85rem; }
@media print { body { background: #fff; } figure, .lead { break-inside: avoid; } }
"""
