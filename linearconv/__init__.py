"""LinearConv: a convolution that stores some filters and generates the rest from them.

Kahatapitiya and Rodrigo, "Exploiting the Redundancy in Convolutional Filters for Parameter
Reduction". The layer needs only torch; `linearconv.engine` is the training code of this
repository and is not imported here.
"""

from linearconv.convert import convert, fuse, set_execution
from linearconv.deploy import deploy
from linearconv.layer import LinearConv2d
from linearconv.regularizer import RegularizedConv2d, correlation_loss, model_correlation_loss
from linearconv.released import load_released
from linearconv.saved import load_converted, save_converted

__all__ = [
    "LinearConv2d",
    "RegularizedConv2d",
    "convert",
    "correlation_loss",
    "deploy",
    "fuse",
    "load_converted",
    "load_released",
    "model_correlation_loss",
    "save_converted",
    "set_execution",
]
