from openrl.telemetry.metrics import create_metrics


def test_two_servers_in_one_process_do_not_share_counts():
    first, second = create_metrics(), create_metrics()
    first.worker_restarts.labels("worker-0").inc()
    assert b'openrl_worker_restarts_total{worker="worker-0"} 1.0' in first.render()
    assert b'worker="worker-0"' not in second.render()
