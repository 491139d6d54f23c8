"""Networks that describe the places in a cloud, so that two clouds of one place can be laid over each other."""

from pcdet_ext.models.registration.losses import correspondence_loss
from pcdet_ext.models.registration.matching import mutual_nearest
from pcdet_ext.models.registration.network import DescribedPoints, RegistrationNetwork

__all__ = ["DescribedPoints", "RegistrationNetwork", "correspondence_loss", "mutual_nearest"]
