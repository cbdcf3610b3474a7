"""The training step of the digits for a chip of the first generation, as far as CANN's graph engine (GE) takes it without CANN.

Run with the stand-ins, which say that the chip is there (ASCEND_SIM_SOC): it ends where GE should have compiled.
"""

import mindspore as ms
import numpy as np
from recipes import DIGITS, stage

from cswin.distributed.backend import backend_of
from cswin.train.trainer import stage_step

config, runtime = stage(DIGITS, optimizer={"amp_level": "O1"}, runtime={"device_target": "Ascend", "skip_by": "select"})
backend = backend_of(runtime, 0)
assert (backend.soc, backend.jit_backend, backend.overflow) == ("Ascend910A", "GE", "saturation")
step = stage_step(config, runtime, np.zeros(1, np.float32), 1, backend)
batch, arch = runtime.batch_size, config.architecture
images, targets = np.zeros((batch, 3, arch.image_size, arch.image_size), np.float32), np.zeros((batch, 10), np.float32)
step.begun = True  # not the graph that clears the flag: a failed graph ends the process
step(ms.Tensor(images), ms.Tensor(targets), ms.Tensor(np.ones((2 * sum(arch.depth), batch), np.float32)))
