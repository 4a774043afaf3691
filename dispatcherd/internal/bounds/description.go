package bounds

import (
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/internal/payload"
)

// CheckDescription returns an INVALID_ARGUMENT error that names the field if a
// description exceeds a limit.
func CheckDescription(d *musterv1.NodeDescription) error {
	if d == nil {
		return status.Error(codes.InvalidArgument, "description is missing")
	}
	if err := nodereport.Check(d); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}

// CheckSchemas sets the error of each executor whose payload schema cannot be
// used, and shortens long messages. The worker's own opinion of its schemas does
// not count. An unusable schema concerns only its node: the scheduler places no
// task there that needs it.
func CheckSchemas(d *musterv1.NodeDescription, schemas *payload.Schemas) {
	for _, e := range d.GetExecutors() {
		e.PayloadSchemaError = ""
		if e.PayloadSchema != "" {
			if err := schemas.Get(e.PayloadSchema).Err(); err != nil {
				e.PayloadSchemaError = strings.ToValidUTF8(Clip(err.Error(), nodereport.MaxExecutorMessage), "")
			}
		}
		if len(e.PayloadSchema) > nodereport.MaxSchema {
			e.PayloadSchema = ""
		}
		e.Message = strings.ToValidUTF8(Clip(e.Message, nodereport.MaxExecutorMessage), "")
	}
	for _, n := range d.GetNetworkDrivers() {
		n.Message = strings.ToValidUTF8(Clip(n.Message, nodereport.MaxExecutorMessage), "")
	}
}

// CheckDataPath removes the data path of a description if other nodes cannot use it,
// and returns why. The node can then run tasks, but other nodes do not reach those on
// networks.
func CheckDataPath(d *musterv1.NodeDescription) string {
	if d.GetDataPath() == nil {
		return ""
	}
	err := nodereport.CheckDataPath(d.DataPath)
	if err == nil {
		return ""
	}
	d.DataPath = nil
	return fmt.Sprintf("description.%v; other nodes cannot reach its tasks on networks", err)
}
