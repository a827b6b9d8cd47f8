"""A client made before multiprocessing forks serves every worker. Usage: pool.py [endpoint]"""

import multiprocessing
import os
import sys

import valkyrie.sync

client = valkyrie.sync.connect(sys.argv[1] if len(sys.argv) > 1 else "tcp://localhost:8080")


def work(number: int) -> tuple[str, int]:
    return client.request(f"job {number}").decode(), os.getpid()


if __name__ == "__main__":
    print(client.request("before the fork").decode())
    with multiprocessing.get_context("fork").Pool(4) as pool:
        answers = pool.map(work, range(100), chunksize=1)
    for number, (answer, _) in enumerate(answers):
        assert answer == f"job {number}", answer
    print(f"{len(answers)} jobs in {len({process for _, process in answers})} processes")
    print(client.request("after the fork").decode())
