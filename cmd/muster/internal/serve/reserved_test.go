package serve

import (
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/defaults"
)

func TestDefaultPortsOfDaemonsAreReserved(t *testing.T) {
	for _, port := range []uint32{apidPort, orchestratordPort, allocatordPort, schedulerdPort, dispatcherdPort, workerdPort, restPort} {
		// Operations listen 1000 above, except for those of the REST server.
		for _, number := range []uint32{port, port + 1000} {
			reserved := port == restPort && number != port
			for _, text := range defaults.ReservedPorts(nil) {
				ports, err := validate.ParsePortRange(text)
				if err != nil {
					t.Fatal(err)
				}
				reserved = reserved || ports.Contains(&musterv1.PortConfig{PublishedPort: number})
			}
			if !reserved {
				t.Errorf("port %d of a daemon is not reserved by default", number)
			}
		}
	}
}
