# Kicks the driver it is told the name of, twice.
for turn in 1 2; do
	echo "$turn" > "/sys/module/$1/parameters/kick" || exit 1
done
