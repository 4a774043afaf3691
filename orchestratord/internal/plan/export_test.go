package plan

// DecideWhole decides on all slots.
func DecideWhole(w *Input) (Plan, error) { return w.decide(scope{tasks: w.Tasks.All()}) }
