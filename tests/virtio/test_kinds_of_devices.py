"""Which devices on a bus are balloons that this driver can drive, and what is said of the others."""

from __future__ import annotations

import pytest
from balloon_model import BalloonModel, driven

import pagehint as ph

ACCESS_PLATFORM = 1 << 33


def of(pci_device, subsystem):
    model = BalloonModel()
    model.pci_device, model.subsystem = pci_device, subsystem
    model.system_reset()
    return model


@pytest.mark.parametrize(("pci_device", "subsystem"), [(0x1002, 5), (0x103F, 5), (0x1045, 1), (0x1045, 5)])
def test_a_transitional_balloon_is_known_by_its_subsystem_and_a_modern_one_by_itself(pci_device, subsystem):
    model = of(pci_device, subsystem)
    balloon = driven(model)
    balloon.report([0], [4096])
    model.system_reset()
    balloon.report([0], [4096])
    assert model.names() == ["reporting", "reporting"]


@pytest.mark.parametrize(("pci_device", "subsystem"), [(0x1002, 1), (0x0FFF, 5), (0x1040, 5), (0x1042, 5)])
def test_other_devices_are_no_balloons(pci_device, subsystem):
    with pytest.raises(ph.HostError, match="no virtio device 5"):
        driven(of(pci_device, subsystem))


def test_a_device_whose_addresses_an_iommu_translates_is_refused_in_words():
    model = BalloonModel()
    model.offered |= ACCESS_PLATFORM
    with pytest.raises(ph.HostError, match=r"translates addresses \(iommu_platform=on\), and this driver has no IOMMU"):
        driven(model)
    assert model.queues == {}, "it was told of no memory"
    balloon = driven(BalloonModel())
    balloon._transport._wire.offered |= ACCESS_PLATFORM
    balloon._transport._wire.system_reset()
    with pytest.raises(ph.HostError, match="translates addresses"):
        balloon.report([0], [4096])
