import faulthandler
import signal

from torch.distributed.elastic.multiprocessing.errors import record

from cli import train

if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # kill -USR2 PID prints where a rank hangs
    record(train)()  # torchrun prints the traceback of the rank that failed first
