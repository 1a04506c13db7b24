"""Runs an application of MONAI Deploy with the SDK's own operators, and a stand-in for Holoscan.

    python deploy_without_holoscan.py SDK APP [arguments of the application]

Holoscan's binaries need a GPU's driver; what the SDK takes from it is a graph of operators. SDK is
a folder that `pip install --no-deps --target SDK monai-deploy-app-sdk` has filled.
"""

import runpy
import sys
from types import ModuleType, SimpleNamespace

SDK, *sys.argv = sys.argv[1:]


class Operator:
    """Named, with ports; what it computes is the SDK's."""

    def __init__(self, fragment, *args, name="", **kwargs):
        self.name = name
        self.setup(OperatorSpec())


class Port:
    """A port, whose conditions this graph needs not."""

    def condition(self, *args):
        return self


class OperatorSpec:
    """What operators say of their ports."""

    def input(self, name):
        return Port()

    output = input


class Application:
    """Operators that run one after the other, in the order in which flows name them."""

    def __init__(self, argv=None):
        self.argv = argv or sys.argv
        self.flows = []

    def add_flow(self, source, destination, ports):
        self.flows.append((source, destination, ports))

    def run(self):
        self.compose()
        order = [flow[0] for flow in self.flows] + [flow[1] for flow in self.flows]
        values = {}
        for operator in sorted(dict.fromkeys(order), key=self._depth):
            given = {
                name: values[source, port]
                for source, destination, ports in self.flows
                if destination is operator
                for port, name in ports
            }
            sent = {}
            receive = SimpleNamespace(receive=given.get)
            emit = SimpleNamespace(emit=lambda value, name, sent=sent: sent.update({name: value}))
            emit.get = lambda name: None
            operator.compute(receive, emit, None)
            values.update({(operator, name): value for name, value in sent.items()})

    def _depth(self, operator):
        before = [flow[0] for flow in self.flows if flow[1] is operator]
        return max((self._depth(one) + 1 for one in before), default=0)


def module(name, **names):
    made = sys.modules[f"holoscan.{name}"] = ModuleType(f"holoscan.{name}")
    vars(made).update(names)
    made.__all__ = list(names)
    return made


class Anything:
    """Of Holoscan, but not used."""

    def __init__(self, *args, **kwargs):
        pass


sys.modules["holoscan"] = ModuleType("holoscan")
sys.modules["holoscan"].core = module(
    "core",
    Application=Application,
    Operator=Operator,
    OperatorSpec=OperatorSpec,
    Fragment=Application,
    Condition=Anything,
    ConditionType=SimpleNamespace(NONE=None),
    Resource=Anything,
)
module("conditions", CountCondition=Anything)
unused = ("PingRxOp", "PingTxOp", "VideoStreamRecorderOp", "VideoStreamReplayerOp")
module("operators", **dict.fromkeys(unused, Anything))
graphs = ("FlowGraphImpl", "FragmentFlowGraph", "FragmentFlowGraphImpl")
graphs += ("OperatorFlowGraph", "OperatorFlowGraphImpl")
module("flow_graphs", **dict.fromkeys(graphs, Anything))
for name in ("resources", "logger", "executors"):
    module(name)

for part in ("", ".http", ".grpc", ".grpc.model_config_pb2"):  # of a server that is not asked
    made = sys.modules[f"tritonclient{part}"] = ModuleType(f"tritonclient{part}")
    names = ("http", "InferenceServerClient", "DataType", "ModelConfig")
    vars(made).update(dict.fromkeys(names, Anything), __path__=[])

sys.path.append(SDK)
import monai  # noqa: E402 - the SDK lies within MONAI's package

monai.__path__.append(f"{SDK}/monai")
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
