"""Two tasks share a model, and one of them has a time limit: python examples/asynchronous.py [FILE]"""

import asyncio
import sys

import gguf_moe
from gguf_moe.cli.common import DEMO_MODEL


async def main(path):
    with gguf_moe.load(path) as model:
        shared = gguf_moe.AsyncModel(model)
        async for chunk in shared.stream_completion("The fox", max_tokens=20, seed=1):
            print(chunk["choices"][0]["text"], end="", flush=True)
        print()
        try:
            async with asyncio.timeout(30):
                answer = await shared.create_completion("A little boat", max_tokens=20, seed=1)
                print(answer["choices"][0]["text"])
        except TimeoutError:
            print("It took too long, and was stopped.")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else DEMO_MODEL))
