"""What the tasks over pictures share: preparation, augmentation, boxes, drawing."""
