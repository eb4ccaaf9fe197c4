# An exercise for the driver: a message to the device, and back.
cd /sys/bus/pci/drivers/courier/0000:* || exit 1
echo "hello, device" > message || exit 1
grep -qx "hello, device" message
