"""Many clients at once on one server: ``python benchmarks/serve.py [--clients 64] [--seconds 60]``, as Markdown.

Each client has a photo of its own, of a size that no other has, and sends it again and again, to one of three parts.
Counted are the answers by status, those that do not belong to the photo, and the server's memory over time.
"""

import argparse
import io
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import requests
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "images" / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-waiting", default="64", help="the server's option")
    arguments = parser.parse_args()
    with TemporaryDirectory() as parts:
        command = [sys.executable, "serve.py", "--config", "compact", "--port", "0", "--no-chat", "--parts", parts]
        command += ["--max-waiting", arguments.max_waiting]
        with subprocess.Popen(command, cwd=ROOT / "code", stdout=subprocess.PIPE, text=True) as server:
            try:
                address = None
                while not address:
                    address = re.search(r"http://\S+", server.stdout.readline())
                measure(address[0], psutil.Process(server.pid), arguments.clients, arguments.seconds)
            finally:
                server.terminate()


def measure(url: str, server: psutil.Process, clients: int, seconds: float) -> None:
    parts = ["default", *(folder.name for folder in sorted(EXAMPLES.iterdir()) if folder.is_dir())][:3]
    for part in parts[1:]:
        files = [("photos", path.read_bytes()) for path in sorted((EXAMPLES / part).glob("good_*"))]
        requests.put(f"{url}/v1/parts/{part}", files=files).raise_for_status()
    sources = [path.resolve() for path in sorted(EXAMPLES.glob("*/*.jpg"))]
    statuses: Counter[int] = Counter()
    wrong, latencies = [], []
    expected: list[Any] = []

    def send(number: int) -> requests.Response:
        image = Image.open(sources[number % len(sources)]).resize((200 + number, 210))
        image.save(file := io.BytesIO(), "PNG")
        part = {"part": parts[number % len(parts)]}
        return requests.post(f"{url}/v1/inspect", files={"photo": file.getvalue()}, data=part, timeout=300)

    def client(number: int) -> None:
        while time.monotonic() < end:
            began = time.monotonic()
            response = send(number)
            statuses[response.status_code] += 1
            if response.status_code == 200:
                latencies.append(time.monotonic() - began)
                found, alone = response.json(), expected[number]
                same = [region["box"] for region in found["regions"]] == [region["box"] for region in alone["regions"]]
                if not same or abs(found["probability"] - alone["probability"]) > 1e-4:
                    wrong.append(number)
                if found["image_size"] != [200 + number, 210]:
                    wrong.append(number)
            else:
                time.sleep(float(response.headers.get("Retry-After", 1)))

    memory: list[float] = []

    def watch() -> None:
        while time.monotonic() < end:
            memory.append(server.memory_info().rss / 2**20)
            time.sleep(0.5)

    expected += [send(number).json() for number in range(clients)]
    began = time.monotonic()
    end = began + seconds
    watching = threading.Thread(target=watch)
    watching.start()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    took = time.monotonic() - began
    watching.join()
    metrics = requests.get(f"{url}/metrics").text
    photos, batches = (
        int(re.search(rf"^anomalygpt_{n}_total (\d+)$", metrics, re.M)[1]) for n in ("photos", "batches")
    )
    third = max(1, len(memory) // 3)
    print(f"{clients} clients, {took:.0f} s, {os.cpu_count()} cores")
    print()
    print("| answers by status | not the photo's own | photos per second | latency, median / 95 % (s) | mean batch |")
    print("|---|--:|--:|--:|--:|")
    print(
        f"| {', '.join(f'{status}: {count}' for status, count in sorted(statuses.items()))} | {len(wrong)} "
        f"| {statuses[200] / took:.1f} | {np.median(latencies):.1f} / {np.quantile(latencies, 0.95):.1f} "
        f"| {(photos - clients) / max(1, batches - clients):.1f} |"
    )
    print()
    means = [np.mean(memory[i * third : (i + 1) * third]) for i in range(3)]
    print("Resident memory, mean of each third of the time: " + ", ".join(f"{mean:.0f} MiB" for mean in means))


if __name__ == "__main__":
    main()
