"""Size of the report of ten thousand results, and in headless Chromium its first paint and the time of a filter.

Beside the time that passes stands the time that the page's main thread works, which other processes disturb less.

python tests/benchmarks/report.py [--results 10000] [--repeats 5]
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import CHROMIUM, DRIVER
from test_leaderboard import over_seeds

from eval_runners.commands.report import render_report
from eval_runners.leaderboard.boards import make_boards
from eval_runners.views.styles import KNOWN

SEEDS = 5
"""Seeds of an SAE; each has a result of `core` and one of `sparse_probing`."""
FILTERS = {
    "search": "byId('query').value = 'top'; byId('query').oninput({ target: byId('query') })",
    "hide an SAE": "document.querySelector('#names input').click()",
    "width": "byId('width').value = '128'; byId('width').onchange({ target: byId('width') })",
    "varied settings": "byId('varied').click()",
    "baseline": "const s = byId('base'); s.value = s.options[1].value; s.onchange({ target: s })",
    "metric": "const s = byId('metric'); s.value = 'core.ce_loss_score'; s.onchange({ target: s })",
}
"""Name -> script that does what a reader does; its time runs until the headline has been painted."""


def make_results(number: int):
    """Results of known architectures at many L0, some with a varied field, of two widths."""
    rng = random.Random(0)
    names = [name for name in KNOWN if name not in ("random", "pca")]
    for position in range(number // (2 * SEEDS)):
        level, d_sae = 10 * 1.25 ** (position // len(names) % 12), (64, 128)[position // len(names) // 12 % 2]
        varied = position // len(names) // 24
        fields = [f"k={level:.0f}", *([f"window={varied}"] if varied else [])]
        label = f"{names[position % len(names)]}[{' '.join(fields)}]"
        values = [rng.gauss(0.7 + 0.002 * level, 0.01) for _ in range(SEEDS)]
        for result in over_seeds(label, values, l0=level * rng.uniform(0.99, 1.01), d_sae=d_sae):
            densities = {"log10_from": -6, "bins_per_decade": 6, "counts": [rng.randrange(99) for _ in range(36)]}
            unstructured = result["eval_result_unstructured"]
            unstructured |= {
                "densities": densities | {"never": 2},
                "explained_variance_corrected": rng.gauss(0.8, 0.01),
            }
            yield result
            metrics = {
                f"sae_top_{k}_test_{kind}": rng.gauss(0.7, 0.01) for k in (1, 2, 5, 10) for kind in ("accuracy", "f1")
            }
            yield result | {"eval_type_id": "sparse_probing", "eval_result_metrics": {"sae": metrics}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,800"):
        options.add_argument(word)
    with tempfile.TemporaryDirectory() as folder:
        results = list(make_results(args.results))
        started = time.perf_counter()
        text = render_report(make_boards(results), [])
        page = Path(folder) / "report.html"
        page.write_text(text)
        print(f"{len(results)} results: written in {time.perf_counter() - started:.1f} s, {len(text) / 2**20:.1f} MiB")
        driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        try:
            measure(driver, page.as_uri(), args.repeats)
        finally:
            driver.quit()


def measure(driver, address: str, repeats: int) -> None:
    """Print medians: of the first paint, of the time until the plots are drawn, and of each filter."""
    driver.set_script_timeout(60)
    driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    paints, ready, filters, working = [], [], {name: [] for name in FILTERS}, {name: [] for name in FILTERS}
    for _ in range(repeats):
        driver.get("about:blank")
        driver.get(address)
        while driver.execute_script("return document.body.dataset.ready") != "yes":
            time.sleep(0.02)
        entries = "return performance.getEntriesByName('first-contentful-paint')[0].startTime"
        paints.append(driver.execute_script(entries))
        ready.append(driver.execute_script("return performance.getEntriesByName('ready')[0].startTime"))
        for name, script in FILTERS.items():
            timed = (
                f"const done = arguments[0], from = performance.now(); {script}; "
                "requestAnimationFrame(() => setTimeout(() => done(performance.now() - from)))"
            )
            before = busy(driver)
            filters[name].append(driver.execute_async_script(timed))
            while driver.execute_script("return document.body.dataset.drawn") != "yes":
                time.sleep(0.02)
            working[name].append(1000 * (busy(driver) - before))
    print(f"first paint {statistics.median(paints):.0f} ms, plots drawn {statistics.median(ready):.0f} ms")
    for name, times in filters.items():
        work = statistics.median(working[name])
        print(f"{name}: {statistics.median(times):.0f} ms, work of the page, table included: {work:.0f} ms")


def busy(driver) -> float:
    """Seconds that the main thread has worked, layout and paint included."""
    metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(each["value"] for each in metrics if each["name"] == "TaskDuration")


if __name__ == "__main__":
    main()
