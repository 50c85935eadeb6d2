package drivertest

func specCases() []testCase      { return nil }
func waitCases() []testCase      { return nil }
func ownerCases() []testCase     { return nil }
func outputCases() []testCase    { return nil }
func limitCases() []testCase     { return nil }
func isolationCases() []testCase { return nil }
func egressCases() []testCase    { return nil }
func leakCases() []testCase      { return nil }
