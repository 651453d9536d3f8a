"""Runs the clients in one process under `Hub.environment`, and prints one JSON object that the tests look into."""

import json
import sys

from tests.publish.clients import faults, life

json.dump({"life": life.live(sys.stdin.read()), "faults": faults.suffer()}, sys.stdout)
